/** The folder with this machine's bundle of the agent. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { REPO } from './paths';

/** null, after saying so loudly, where there is none. */
export function agentBundleOrSkip(): string | null {
  const place = process.env['MOEFLEET_TEST_BUNDLES'] ?? join(REPO, 'dist-bundle');
  if (existsSync(place)) return place;
  process.stderr.write(`\nTHERE IS NO BUNDLE in ${place}: tests that need one are SKIPPED; make it with: npm run bundle\n`);
  return null;
}
