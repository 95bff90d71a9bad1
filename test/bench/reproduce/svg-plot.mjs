/** The plots of `moefleet replay --svg` are those of the tables. */
import { createRequire } from 'node:module';

export const { plot, ticks } = createRequire(import.meta.url)('@moefleet/replay');
