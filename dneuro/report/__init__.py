"""Pages and figures of what a store holds, as a static folder that opens offline."""
