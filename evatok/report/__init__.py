"""Pages, plots and pictures for people."""
