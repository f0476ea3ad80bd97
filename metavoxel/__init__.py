"""metavoxel: one joint diffusion model of medical images and the clinical facts beside them."""
