"""The commands of `evatok`, by what they do."""
