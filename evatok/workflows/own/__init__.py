"""Own videos: what is there, the settings that follow, and how long it takes."""
