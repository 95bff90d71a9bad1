/** `host:port` to listen on. */
import { isIPv4 } from 'node:net';
import { ConfigError } from './config-value';

export interface ListenAddress {
  /** without brackets */
  readonly host: string;
  /** 0: a free one */
  readonly port: number;
}

/** Reads `127.0.0.1:7400`, `localhost:0` or `[::1]:7400`; throws ConfigError in the name of `setting`. */
export function parseListenAddress(setting: string, text: string): ListenAddress {
  const match = /^(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})$/.exec(text.trim());
  const port = Number(match?.[3]);
  if (!match || port > 65_535) throw new ConfigError(setting, text, 'an address such as 127.0.0.1:7400 (port 0: a free one)');
  return { host: match[1] ?? match[2]!, port };
}

export function formatAddress(host: string, port: number): string {
  return host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`;
}

export function isLoopback(host: string): boolean {
  return host === 'localhost' || host === '::1' || (isIPv4(host) && host.startsWith('127.'));
}
