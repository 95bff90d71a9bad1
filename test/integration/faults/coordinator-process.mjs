/** A coordinator with the timing of a test: `node coordinator-process.mjs '{"settings": {…}, "tuning": {…}}'`. */
import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
const { buildCoordinator, readConfig } = require('@moefleet/coordinator/main');
const { createLogger, runUntilSignal } = require('@moefleet/runtime');

const { settings, tuning } = JSON.parse(process.argv[2]);
const log = createLogger('coordinator', process.env.MOEFLEET_TEST_LOG ?? 'silent');
process.exitCode = await runUntilSignal(buildCoordinator(readConfig(settings), log, tuning).lifecycle, log);
