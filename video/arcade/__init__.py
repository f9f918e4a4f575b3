"""Games played at random: recorded in the layout of UCF-101, or drawn while a model trains."""
