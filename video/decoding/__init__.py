"""One video file: its packets, its frames as pictures, and pictures in files of their own."""
