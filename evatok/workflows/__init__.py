"""The stages as commands run them: settings in, a folder out."""
