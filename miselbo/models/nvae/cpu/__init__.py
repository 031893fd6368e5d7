"""Short cuts of the training step on a CPU in float32, equal to the library's operations up to round-off."""
