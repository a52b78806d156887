"""Work on many items: in this process, or by workers of Ray on this machine or on many."""
