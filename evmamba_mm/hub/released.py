"""The published weights: a classifier for each size.

Source: the README of github.com/TerryPei/EfficientVMamba, and the file names
in its detection configs.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """A published file.

    Args:
        repository: Its repository at Hugging Face.
        file: Its name there, as far as it is known.
        sha256: Hex digest of the file, None before anyone has seen it.
    """

    repository: str
    file: str
    sha256: str | None = None

    @property
    def page(self) -> str:
        """Address of the page that a browser shows."""
        return f'https://huggingface.co/{self.repository}'


RELEASED = {
    size: Release(
        f'TerryPei/EfficientVMamba-{size.title()}',
        f'efficient_vmamba_{size}.ckpt',
    )
    for size in ('tiny', 'small', 'base')
}
