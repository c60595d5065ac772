"""What a client does, what a server does, what crosses between them, and a simulation of both."""
