/**
 * A setting of a program, told once: the command line makes its flags and help from this list, `config.ts` reads the
 * merged values. A flag wins over the environment, the environment over the fallback.
 */
import type { Env } from './config-value';

export interface Setting {
  /** commander's notation: `--redis-url <url>`; a switch has no argument */
  flags: string;
  /** environment variable */
  env: string;
  description: string;
  /** shown in the help; `config.ts` applies it */
  fallback?: string;
}

/** Gives `command` a program's settings as its flags. */
export function addSettings<C extends { option(flags: string, description: string): unknown }>(command: C, settings: readonly Setting[]): C {
  for (const setting of settings) {
    const notes = [`env: ${setting.env}`, ...(setting.fallback ? [`default: ${setting.fallback}`] : [])].join(', ');
    command.option(setting.flags, `${setting.description} (${notes})`);
  }
  return command;
}

/** Values by environment variable name: `flags` (commander's camelCase option names) over `env`. */
export function mergeSettings(settings: readonly Setting[], flags: Readonly<Record<string, unknown>>, env: Env): Env {
  const merged: Record<string, string | undefined> = {};
  for (const setting of settings) {
    const given = flags[optionName(setting.flags)];
    merged[setting.env] = given === undefined ? env[setting.env] : String(given);
  }
  return merged;
}

function optionName(flags: string): string {
  const long = /--([a-z0-9-]+)/.exec(flags)?.[1] ?? flags;
  return long.replace(/-([a-z0-9])/g, (_, letter: string) => letter.toUpperCase());
}
