"""What a packet meets on its way through rendered rules. Pure: nothing is sent, no kernel is asked."""
