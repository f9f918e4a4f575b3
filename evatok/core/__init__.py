"""Foundations that every package uses: settings, files, errors, processes, seeds, devices."""
