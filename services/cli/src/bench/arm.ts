/**
 * One contestant of a bench: the stock library, or the engine under the flags of `engine eval`. An arm is written
 * `name` (one of the named ones) or `name:flag=value,flag=value`, the flags in either spelling; a piece without `=` goes
 * on with the list before it.
 */
import { Command, CommanderError } from 'commander';
import { addEngineOptions, addRoutingOptions, type EngineFlags, type RoutingFlags, settings } from '../commands/engine';
import type { EngineSettings } from '../engine/engine-job';
import { UsageFailure } from '../failure';

export type Arm = StockArm | EngineArm;
/** llama.cpp with its defaults, the file mapped; `extraBufts`: weights may be repacked into memory of their own. */
export interface StockArm { t: 'stock'; name: string; text: string; extraBufts: boolean; }
export interface EngineArm { t: 'engine'; name: string; text: string; settings: EngineSettings; }

/** What all arms share unless their text says otherwise. */
export interface ArmDefaults {
  model: string; threads: number; lanes: number; capacity: number;
  /** of the named arms that bend the router */
  lambda: string; topJ: string;
}

/** Plain LRU with the model's own routing: what every other arm is held against. */
export const REFERENCE_ARM = 'lru';
export const STOCK_ARM = 'stock';

/** The named arms and what each is short for. */
export function namedArms({ lambda, topJ }: Pick<ArmDefaults, 'lambda' | 'topJ'>): Record<string, string> {
  const bent = `lambda=${lambda},topJ=${topJ}`;
  const policy = 'eviction=adaptive';
  return {
    [STOCK_ARM]: 'extraBufts=true',
    [REFERENCE_ARM]: 'lambda=0,eviction=lru',
    lambda: `${bent},eviction=lru`,
    'ours-lossless': `lambda=0,${policy}`,
    ours: `${bent},${policy}`,
  };
}

export function parseArm(text: string, defaults: ArmDefaults): Arm {
  const colon = text.indexOf(':');
  const name = (colon < 0 ? text : text.slice(0, colon)).trim();
  if (!/^[\w.-]+$/.test(name)) throw new UsageFailure(`--arm: "${text}" has no name of letters, digits, dots and dashes before its colon; write name:lambda=0.3,topJ=1`);
  const named = namedArms(defaults);
  if (colon < 0 && !(name in named)) {
    throw new UsageFailure(`--arms: there is no arm named ${name}; use ${Object.keys(named).join(', ')}, or give one with --arm name:lambda=0.3,topJ=1`);
  }
  const literal = colon < 0 ? named[name]! : text.slice(colon + 1);
  const flags = splitFlags(literal, text);
  if (name === STOCK_ARM || name.startsWith(`${STOCK_ARM}-`)) return stockArm(name, literal, flags);
  return { t: 'engine', name, text: literal, settings: engineSettings(text, flags, defaults) };
}

type Flags = [string, string][];

function splitFlags(literal: string, arm: string): Flags {
  const flags: Flags = [];
  for (const piece of literal.split(',').map((each) => each.trim()).filter(Boolean)) {
    const equals = piece.indexOf('=');
    if (equals > 0) flags.push([kebab(piece.slice(0, equals).trim()), piece.slice(equals + 1).trim()]);
    else if (equals < 0 && flags.length > 0) flags[flags.length - 1]![1] += `,${piece}`;
    else throw new UsageFailure(`--arm: "${arm}": "${piece}" is no flag=value`);
  }
  return flags;
}

function kebab(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

function stockArm(name: string, text: string, flags: Flags): Arm {
  let extraBufts = true;
  for (const [flag, value] of flags) {
    if (flag !== 'extra-bufts' || !['true', 'false'].includes(value)) {
      throw new UsageFailure(`--arm: "${name}:${flag}=${value}": a stock arm takes extraBufts=true or extraBufts=false alone`);
    }
    extraBufts = value === 'true';
  }
  return { t: 'stock', name, text, extraBufts };
}

/** Read by the very flags of `engine eval`, so that an arm can do what they can. */
function engineSettings(arm: string, flags: Flags, { model, threads, lanes, capacity }: ArmDefaults): EngineSettings {
  const command = addEngineOptions(addRoutingOptions(new Command('arm')))
    .option('--seed <n>', '', Number, 0)
    .exitOverride().configureOutput({ writeErr: () => {} });
  const sized = flags.some(([flag]) => flag === 'capacity' || flag === 'cache-mib');
  const words = ['--model', model, '--threads', String(threads), '--lanes', String(lanes), ...(sized ? [] : ['--capacity', String(capacity)])];
  for (const [flag, value] of flags) {
    if (value === 'true') words.push(`--${flag}`);
    else if (value === 'false') words.push(`--no-${flag}`);
    else words.push(`--${flag}=${value}`);
  }
  try {
    command.parse(words, { from: 'user' });
  } catch (error) {
    if (error instanceof CommanderError) throw new UsageFailure(`--arm: "${arm}": ${error.message.replace(/^error: /, '')}`);
    throw error;
  }
  return settings(command.opts<EngineFlags & Partial<RoutingFlags>>(), 0);
}
