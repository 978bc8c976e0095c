"""A backbone, and the shapes that its parts gave in a real forward."""


class Trace:
    """Parts of a backbone, asked by their names.

    Shapes are those of what the backbone calls, widths those of the layers'
    weights.
    """

    def __init__(self, arch, size):
        import torch

        from evmamba_mm import EfficientVMamba

        self.model = EfficientVMamba(arch=arch).eval()
        channels = self.model.patch_embed.conv.in_channels
        self.image = torch.zeros(1, channels, size, size)
        self.shapes, self.output = record(self.model, self.image)

    def shape(self, name):
        """The shape, channels last, of the feature map of a part."""
        batch, channels, height, width = self.shapes[name]
        return batch, height, width, channels

    def module(self, name):
        return self.model.get_submodule(name)

    def kind(self, name):
        """The class of a part, 'LayerNorm' for LayerNorm2d."""
        return type(self.module(name)).__name__.removesuffix('2d')

    def parameters(self, *names):
        return sum(
            parameter.numel()
            for name in names
            for parameter in self.module(name).parameters()
        )

    def width(self, name):
        """Output channels of a convolution, a linear layer or a norm."""
        return self.module(name).weight.shape[0]


def record(model, image):
    """Runs the model; returns the shapes of its parts and of the last map."""
    import torch

    shapes = {}

    def hook_of(name):
        def hook(module, inputs, output):
            if isinstance(output, torch.Tensor):
                shapes.setdefault(name, tuple(output.shape))

        return hook

    handles = [
        module.register_forward_hook(hook_of(name))
        for name, module in model.named_modules()
        if name
    ]
    with torch.no_grad():
        last = model(image)[-1]
    for handle in handles:
        handle.remove()
    return shapes, tuple(last.permute(0, 2, 3, 1).shape)
