"""The Kinetics-400 I3D of the FVD paper, in the forms that papers use."""
