"""The Python API, as `import evatok` shows it."""
