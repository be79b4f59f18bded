"""What Serve is told of as the request router: Serve pickles the class and its module's names by value.

So a router that shared anything with the rest of the gateway would get a copy of it. This one has nothing of its own;
what it inherits is pickled by reference.
"""

from deployments.router import ReplicaRouter


class ServedReplicaRouter(ReplicaRouter):
    """See ``ReplicaRouter``."""
