"""Synthetic scenes of coloured shapes: what `sam3-tiny` is pretrained on and what the demo draws."""
