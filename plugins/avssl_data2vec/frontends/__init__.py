"""From clips to tensors: waveforms, images and tokens."""
