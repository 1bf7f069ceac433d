"""minidl: deep learning from scratch."""
