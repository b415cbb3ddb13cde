"""The long training behind `data/pretrained/train.sh`: its stages, who runs them, what is released."""
