"""What measures: servers, engines and the load on them, in turn, and the machine they run on."""
