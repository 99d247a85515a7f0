"""Who is behind an attempt: from a packet to the unit, program, user, container and client."""
