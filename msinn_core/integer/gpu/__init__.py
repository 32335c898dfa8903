"""The integer network on a GPU: a batch of pictures stays on the device from pixels to symbols and back."""
