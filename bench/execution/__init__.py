"""Where evaluations are computed: in this process, or in several on this machine."""
