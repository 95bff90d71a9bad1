/** The folder with this machine's bundle of the agent. */
import { existsSync } from 'node:fs';

export function agentBundleOrSkip(): string | null {
  const place = process.env['MOEFLEET_TEST_BUNDLES'] ?? '/tmp/deploy/bundles';
  return existsSync(place) ? place : null;
}
