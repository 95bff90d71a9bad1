/** The text on which devices measure their quality for gates. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { ConfigError } from '@moefleet/runtime';
import { reasonOf } from '../errors';

/** Excerpt of WikiText-2's test split (Wikipedia, CC BY-SA); see the coordinator's README. */
const BUNDLED = join(__dirname, '..', '..', 'gate-text.txt');
/** Agents take no more. */
const MOST_BYTES = 512 * 1024;
const LEAST_BYTES = 8 * 1024;

/** Empty `path`: the bundled one. Throws ConfigError. */
export function readGateText(path: string): string {
  let text: string;
  try {
    text = readFileSync(path || BUNDLED, 'utf8');
  } catch (error) {
    throw new ConfigError('MOEFLEET_GATE_TEXT', path, `a file that can be read (${reasonOf(error)})`);
  }
  const bytes = Buffer.byteLength(text);
  if (bytes < LEAST_BYTES || bytes > MOST_BYTES) throw new ConfigError('MOEFLEET_GATE_TEXT', path, `a text of ${LEAST_BYTES} to ${MOST_BYTES} bytes; it has ${bytes}`);
  return text;
}
