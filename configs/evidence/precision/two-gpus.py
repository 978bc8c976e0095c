_base_ = '../tin50/tiny.py'

# The same 256 images a step, on two GPUs: `tools/dist_train.sh ... 2`.
train_dataloader = dict(batch_size=128)
