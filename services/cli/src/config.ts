/** The command line's own settings: flags over environment over fallback. */
import type { Command } from 'commander';
import { ConfigError, type Env, readOperatorToken } from '@moefleet/runtime';

export const DEFAULT_OPERATOR = '127.0.0.1:7401';

export interface CommonOptions {
  operator: string;
  /** file of the fleet's CA; empty: plaintext */
  ca: string;
  /** null: none is sent */
  token: string | null;
  json: boolean;
}

/** Every command that talks to a coordinator or prints data takes these; so do the groups above it. */
export function addCommonOptions(command: Command, wants: { operator: boolean }): Command {
  if (wants.operator) {
    command.option('--operator <address>', `operator API of a coordinator (env: MOEFLEET_OPERATOR, default: ${DEFAULT_OPERATOR})`);
    command.option('--ca <file>', 'certificate of the fleet\'s CA, ca.pem, where the coordinator runs with --tls-dir (env: MOEFLEET_CA)');
    command.option('--token-file <file>', 'file with your token, where the coordinator asks for one (env: MOEFLEET_TOKEN_FILE, or MOEFLEET_TOKEN for the token itself)');
  }
  return command.option('--json', 'print JSON alone on standard output');
}

/** The nearest value on the way from `command` up to the program. */
export function readCommonOptions(command: Command, env: Env): CommonOptions {
  const operator = String(nearest(command, 'operator') ?? (env['MOEFLEET_OPERATOR'] || DEFAULT_OPERATOR));
  const match = /^(\[[^\]]+\]|[^:\s]+):(\d{1,5})$/.exec(operator);
  if (!match || Number(match[2]) < 1 || Number(match[2]) > 65535) {
    throw new ConfigError('--operator', operator, 'an address such as 127.0.0.1:7401');
  }
  const tokenFile = nearest(command, 'tokenFile') ?? env['MOEFLEET_TOKEN_FILE'];
  return {
    operator, ca: String(nearest(command, 'ca') ?? env['MOEFLEET_CA'] ?? ''), token: readOperatorToken(tokenFile === undefined ? undefined : String(tokenFile), env),
    json: Boolean(nearest(command, 'json')),
  };
}

export function isDebug(env: Env): boolean {
  return ['debug', 'trace'].includes(env['MOEFLEET_LOG_LEVEL'] ?? '');
}

function nearest(command: Command, name: string): unknown {
  for (let at: Command | null = command; at; at = at.parent) {
    const value: unknown = at.getOptionValue(name);
    if (value !== undefined) return value;
  }
  return undefined;
}
