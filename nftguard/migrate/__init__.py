"""What other firewalls block, taken over: their files to a configuration of nftguard's."""
