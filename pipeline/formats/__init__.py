"""File formats that anybody may have made, read within bounds."""
