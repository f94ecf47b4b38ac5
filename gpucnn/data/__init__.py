"""Reading, drawing and fetching image data: host arrays only, uint8 and channels last."""
