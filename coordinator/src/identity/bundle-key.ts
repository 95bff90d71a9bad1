/**
 * The public half of the key that signs the fleet's bundles, kept beside its authority. Devices pin it when they enrol, so that
 * nobody who gets hold of a coordinator later can have them run what that key has not signed.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Logger, parsePublicKey } from '@moefleet/runtime';

export const BUNDLE_KEY_FILE = 'bundle-key.pub';

/** Read at each enrolment, so that a key made after the start counts too. Empty where `folder` has none; what is no key is told and counts as none. */
export function readBundleKey(folder: string, log: Logger): string {
  const file = join(folder, BUNDLE_KEY_FILE);
  if (!existsSync(file)) return '';
  try {
    return parsePublicKey(readFileSync(file, 'utf8')).text;
  } catch (error) {
    log.error({ file, reason: (error as Error).message }, 'the bundle key cannot be read; devices that enrol pin none');
    return '';
  }
}
