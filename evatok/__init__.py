"""The face: command line, `evatok.load`, reports and the web page."""
