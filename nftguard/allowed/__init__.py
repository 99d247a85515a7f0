"""What is allowed for a while: asked for with `nftguard allow`, taken back with `nftguard deny`."""
