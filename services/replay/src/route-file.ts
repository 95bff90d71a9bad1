/**
 * Route files: which experts every token used, layer by layer. The format is BigMoeOnEdge's `route_trace v1`: comment lines
 * that start with `#` (model, experts, bytes per layer), a header, then one row per routed expert. Columns are found by
 * name; `turn`, `phase`, `step`, `layer`, `slot` and `expert` are needed, the others are not read.
 *
 * The rows of one `(turn, phase, step, layer)` are one routing event. They stand together, slot 0 (the router's first choice)
 * first, and a layer's events stand in the order in which they happened.
 *
 * A comment `# capacity layer=3 experts=12` says that this layer's cache held so many experts from the layer's next event on:
 * by a spec or because memory was short.
 */
import type { ModelInfo } from '@moefleet/edge-agent/engine';
import { TraceError } from './trace-error';

/** What the engine takes; `layers[i]` is the block that `layerEvents[i]` belongs to. */
export interface RecordedRoutes {
  experts: number;
  topK: number;
  routes: Int32Array;
  layerEvents: number[];
  changes: Int32Array;
  /** of one expert, per layer; null where the file does not say */
  expertBytes: number[] | null;
  layers: number[];
  phase: number;
}

const COLUMNS = ['turn', 'phase', 'step', 'layer', 'slot', 'expert'] as const;
type Row = Record<(typeof COLUMNS)[number], number>;

/** BigMoeOnEdge writes prompts as 0 and generated tokens as 1. */
const PROMPT = 0;
const DECODE = 1;
const MOST_EXPERTS = 65_536;
const MOST_PER_TOKEN = 128;

/** What one phase holds so far. */
interface Phase {
  /** experts of every event, per layer */
  layers: Map<number, number[][]>;
  rows: number;
  /** two tokens of one layer follow each other directly */
  adjacent: boolean;
}

/**
 * Reads the events of one phase; by default those of decode, which are the ones recorded token by token: a prompt that is
 * computed as one batch is recorded layer by layer. Throws TraceError naming the line, the value and what to do.
 */
export function parseRoutes(path: string, text: string, wanted: number | null): RecordedRoutes {
  const reader = new RouteReader(path);
  let start = 0;
  while (start < text.length) {
    const newline = text.indexOf('\n', start);
    const end = newline < 0 ? text.length : newline;
    reader.read(text.slice(start, end).trimEnd());
    start = end + 1;
  }
  return reader.finish(wanted);
}

class RouteReader {
  private line = 0;
  private experts: number | null = null;
  private readonly expertBytes = new Map<number, number>();
  private highest = -1;
  private columns: string[] | null = null;
  private places: number[] = [];
  private last: Row | null = null;
  private event: number[] = [];
  private readonly phases = new Map<number, Phase>();
  /** `events`: per phase, of the layer before the change */
  private readonly changes: { layer: number; capacity: number; events: Map<number, number> }[] = [];
  /** `phase,layer` to its latest event */
  private readonly latest = new Map<string, Row>();

  constructor(private readonly path: string) {}

  read(line: string): void {
    this.line += 1;
    if (line === '') return;
    if (line.startsWith('#')) this.readComment(line);
    else if (this.columns === null) this.readHeader(line);
    else this.add(this.readRow(line));
  }

  finish(wanted: number | null): RecordedRoutes {
    const found = [...this.phases.keys()].sort((a, b) => a - b);
    if (found.length === 0) throw new TraceError(`${this.path} holds no routes; it needs a header (${COLUMNS.join(',')}) and a row for each routed expert`);
    const phase = wanted ?? this.decodePhase(found);
    const chosen = this.phases.get(phase);
    if (!chosen) throw new TraceError(`--phase: ${this.path} holds no rows of phase ${phase}; use ${found.join(' or ')}`);
    const layers = [...chosen.layers.keys()].sort((a, b) => a - b);
    const events = layers.map((layer) => chosen.layers.get(layer)!);
    const topK = events.flat().reduce((most, ids) => Math.max(most, ids.length), 0);
    const routes = new Int32Array(events.reduce((sum, each) => sum + each.length, 0) * topK).fill(-1);
    events.flat().forEach((ids, index) => routes.set(ids, index * topK));
    return { experts: this.experts ?? this.highest + 1, topK, routes, layers, layerEvents: events.map((each) => each.length), changes: this.changesOf(phase, layers), expertBytes: this.bytesOf(layers), phase };
  }

  private bytesOf(layers: readonly number[]): number[] | null {
    const bytes = layers.map((layer) => this.expertBytes.get(layer));
    return bytes.every((each) => each !== undefined) ? bytes : null;
  }

  private changesOf(phase: number, layers: readonly number[]): Int32Array {
    return Int32Array.from(this.changes.filter(({ layer }) => layers.includes(layer))
      .flatMap(({ layer, capacity, events }) => [layers.indexOf(layer), events.get(phase) ?? 0, capacity]));
  }

  private decodePhase(found: readonly number[]): number {
    const single = found.filter((phase) => !this.isBatched(phase));
    const most = single.reduce<number | null>((best, phase) => (best === null || this.phases.get(phase)!.rows > this.phases.get(best)!.rows ? phase : best), null);
    if (most === null) throw new TraceError(`${this.path} holds no decode rows: its tokens are recorded layer by layer, as a prompt is; name the phase to take with --phase ${found.join(' or ')}`);
    return most;
  }

  private isBatched(phase: number): boolean {
    const { layers, adjacent } = this.phases.get(phase)!;
    return layers.size > 1 && adjacent;
  }

  private readComment(line: string): void {
    const said = /\bn_expert=(\S*)/.exec(line);
    if (said) this.experts = this.whole('n_expert', said[1]!, 1, MOST_EXPERTS);
    const bytes = /\blayer=(\S+)\s+expert_bytes=(\S+)/.exec(line);
    if (bytes) this.expertBytes.set(this.whole('layer', bytes[1]!, 0, 65_535), this.whole('expert_bytes', bytes[2]!, 0, Number.MAX_SAFE_INTEGER));
    if (/^#\s*capacity\s/.test(line)) this.readChange(line);
  }

  private readChange(line: string): void {
    const found = /^#\s*capacity\s+layer=(\S+)\s+experts=(\S+)$/.exec(line);
    if (!found) this.fail(`'${shortened(line)}' is no change of capacity; write it as '# capacity layer=3 experts=12'`);
    const layer = this.whole('layer', found[1]!, 0, 65_535);
    const events = new Map([...this.phases].map(([phase, { layers }]) => [phase, layers.get(layer)?.length ?? 0] as const));
    this.changes.push({ layer, capacity: this.whole('experts', found[2]!, 1, MOST_EXPERTS), events });
  }

  private readHeader(line: string): void {
    const columns = line.split(',');
    this.places = COLUMNS.map((name) => columns.indexOf(name));
    const missing = COLUMNS.filter((_, i) => this.places[i]! < 0);
    if (missing.length > 0) this.fail(`the header has no column ${missing.join(', ')}: '${shortened(line)}'; the first line that is no comment names the columns, ${COLUMNS.join(',')} among them`);
    this.columns = columns;
  }

  private readRow(line: string): Row {
    const fields = line.split(',');
    if (fields.length !== this.columns!.length) this.fail(`${fields.length} values for ${this.columns!.length} columns: '${shortened(line)}'; complete the row, or remove it with its event`);
    const value = (i: number, most: number) => this.whole(COLUMNS[i]!, fields[this.places[i]!]!, 0, most);
    return {
      turn: value(0, Number.MAX_SAFE_INTEGER), phase: value(1, 255), step: value(2, Number.MAX_SAFE_INTEGER), layer: value(3, 65_535),
      slot: value(4, MOST_PER_TOKEN - 1), expert: value(5, (this.experts ?? MOST_EXPERTS) - 1),
    };
  }

  private add(row: Row): void {
    const { last } = this;
    const goesOn = last !== null && row.slot > 0 && row.turn === last.turn && row.phase === last.phase && row.step === last.step && row.layer === last.layer;
    if (goesOn ? row.slot !== last.slot + 1 : row.slot !== 0) {
      this.fail(`slot: ${row.slot} where ${goesOn ? last.slot + 1 : 0} is due; the experts of one token and layer stand together, slot 0 first`);
    }
    if (!goesOn) this.begin(row);
    if (this.event.includes(row.expert)) this.fail(`expert: ${row.expert} stands twice in one event; a token uses an expert once`);
    this.event.push(row.expert);
    this.phases.get(row.phase)!.rows += 1;
    this.highest = Math.max(this.highest, row.expert);
    this.last = row;
  }

  private begin(row: Row): void {
    const key = `${row.phase},${row.layer}`;
    const before = this.latest.get(key);
    if (before && (row.turn < before.turn || (row.turn === before.turn && row.step <= before.step))) {
      this.fail(`step: turn ${row.turn}, step ${row.step} of layer ${row.layer} comes after turn ${before.turn}, step ${before.step}; put a layer's rows in the order in which its tokens were routed, each once`);
    }
    this.latest.set(key, row);
    const phase = this.phases.get(row.phase) ?? { layers: new Map<number, number[][]>(), rows: 0, adjacent: false };
    this.phases.set(row.phase, phase);
    if (this.last?.phase === row.phase && this.last.layer === row.layer) phase.adjacent = true;
    this.event = [];
    const events = phase.layers.get(row.layer);
    if (events) events.push(this.event);
    else phase.layers.set(row.layer, [this.event]);
  }

  private whole(name: string, text: string, least: number, most: number): number {
    const value = /^\d+$/.test(text) ? Number(text) : NaN;
    if (!(value >= least && value <= most)) this.fail(`${name}: '${shortened(text)}' is no whole number from ${least} to ${most}; correct it, or record the routes again`);
    return value;
  }

  private fail(message: string): never {
    throw new TraceError(`${this.path}:${this.line}: ${message}`);
  }
}

function shortened(text: string): string {
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

/**
 * Writes what an evaluation recorded (`EvalResult.routes`), window by window, each a turn of its own. As in other route
 * files a window's prompt comes layer by layer, and what is scored token by token.
 */
export function* formatRoutes(info: ModelInfo, routes: Int32Array, contextTokens: number, promptTokens: number): Generator<string> {
  const { moeLayers: layers, topK } = info;
  yield `# route_trace v1\n# model=${info.name || info.path} arch=${info.architecture} n_layer=${info.layers} n_expert=${info.experts} n_expert_used=${topK}\n`;
  yield layers.map((layer, i) => `# layer=${layer} expert_bytes=${info.expertBytes[i]!}\n`).join('');
  yield `${COLUMNS.join(',')}\n`;
  const event = (token: number, layer: number): string => {
    const [turn, step] = [Math.floor(token / contextTokens), token % contextTokens];
    const first = (token * layers.length + layer) * topK;
    const used = routes.subarray(first, first + topK).filter((expert) => expert >= 0);
    return Array.from(used, (expert, slot) => `${turn},${step < promptTokens ? PROMPT : DECODE},${step},${layers[layer]!},${slot},${expert}\n`).join('');
  };
  const tokens = routes.length / (layers.length * topK);
  for (let first = 0; first < tokens; first += contextTokens) {
    yield layers.map((_, layer) => range(promptTokens).map((step) => event(first + step, layer)).join('')).join('');
    yield range(contextTokens - promptTokens).map((step) => layers.map((_, layer) => event(first + promptTokens + step, layer)).join('')).join('');
  }
}

function range(length: number): number[] {
  return Array.from({ length }, (_, i) => i);
}
