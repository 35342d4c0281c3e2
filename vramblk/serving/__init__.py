"""What a worker does for one connection in the transmission phase.

``receive`` holds the bytes that came, ``connection`` takes requests out of them, ``submission``
puts them into the ring, ``pending`` keeps what is in flight, ``replyqueue`` sends the replies and
``repair`` rewrites those of requests that failed.
"""
