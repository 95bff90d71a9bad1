#!/usr/bin/env node
'use strict';
const { existsSync } = require('node:fs');
const { join } = require('node:path');

const main = join(__dirname, '..', 'dist', 'main.js');
if (!existsSync(main)) {
  process.stderr.write('moefleet: not built yet; run ./dev build in the repository\n');
  process.exit(1);
}
require(main).runFromShell();
