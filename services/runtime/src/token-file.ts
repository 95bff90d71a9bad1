/** An operator's token, from a file or the environment. */
import { readFileSync } from 'node:fs';
import { ConfigError, type Env } from './config-value';

export const TOKEN_SETTING = {
  flags: '--token-file <file>', env: 'MOEFLEET_TOKEN_FILE', description: 'file with an operator\'s token, where the coordinator asks for one; MOEFLEET_TOKEN holds the token itself',
} as const;

/** What may travel in a header; the coordinator decides whether it is any good. */
const TOKEN = /^[\x21-\x7e]{1,256}$/;

/** null where there is none. The file wins over MOEFLEET_TOKEN. Throws ConfigError, which never shows the token. */
export function readOperatorToken(file: string | undefined, env: Env): string | null {
  if (file) {
    let text: string;
    try {
      text = readFileSync(file, 'utf8').trim();
    } catch (error) {
      throw new ConfigError('--token-file', file, `a file that can be read (${(error as NodeJS.ErrnoException).code ?? 'unknown reason'})`);
    }
    if (!TOKEN.test(text)) throw new ConfigError('--token-file', file, 'a file that holds one token and nothing else');
    return text;
  }
  const token = env['MOEFLEET_TOKEN'];
  if (!token) return null;
  if (!TOKEN.test(token)) throw new ConfigError('MOEFLEET_TOKEN', '…', 'one token, without spaces');
  return token;
}
