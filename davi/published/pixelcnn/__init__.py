"""Published PixelCNN++ and PixelSNAIL."""
