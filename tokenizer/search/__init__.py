"""Every assignment of a clip, its reward, and ways to choose."""
