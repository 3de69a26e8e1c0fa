"""Train without the service: `python train.py --config run.yaml [--resume PATH]`."""

from sam3_lora.cli import train_command

if __name__ == "__main__":
    train_command()
