"""What measures: servers, engines and the load on them, in turns, and the machine they run on."""
