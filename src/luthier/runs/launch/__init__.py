"""Jobs on clusters: the file that starts a run there, handed to the cluster's own tool, and followed."""
