"""What is done for one client, from its first byte to its last.

``negotiation`` comes first. In transmission the bytes of a ``connection`` go one way: ``receive`` holds what
came, ``dispatch`` decides what becomes of each request, ``ringwriter`` puts it into the ring, ``submissions``
keeps what is in flight, ``replyqueue`` sends the replies, ``repair`` rewrites those of requests that failed.
The caller that drives connections calls ``connection.complete``: nothing below calls back.
"""
