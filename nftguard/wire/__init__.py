"""What is said over netlink, in a small codec of our own: rules, packets, sockets, tunnels."""
