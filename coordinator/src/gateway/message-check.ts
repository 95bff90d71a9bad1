/** Checks what an agent sends before anything is kept. Throws InvalidRequestError naming the field and its value. */
import { ConnectRequest, type DeviceInfo, type ExpertUse, type Hello, type ModelHolding, MIN_PROTOCOL_VERSION, PROTOCOL_VERSION, type Reported, type RouterWindow, SpecState, type TelemetryFrame } from '@moefleet/proto';
import { InvalidRequestError } from '../errors';
import { checkId, checkReportedLabels, checkSha256 } from '../names';
import { MAX_GENERATION } from '../registry/device-record';

/** Far above any model's; keeps one message from becoming a burden for every reader. */
const MOST_LAYERS = 4096;
const MOST_EXPERTS = 65_536;
const MOST_TEXT = 4096;
const MOST_ADJUSTMENTS = 256;
const MOST_NETWORKS = 64;
const MOST_NETWORK_TEXT = 64;

/** A message, or why the bytes are none. Used as the stream's deserialiser, so that it never throws. */
export type Incoming = { t: 'message'; message: ConnectRequest; /** on the wire */ bytes: number } | { t: 'malformed'; reason: string };

export function decodeIncoming(bytes: Buffer): Incoming {
  try {
    return { t: 'message', message: ConnectRequest.decode(bytes), bytes: bytes.length };
  } catch (error) {
    return { t: 'malformed', reason: error instanceof Error ? error.message : String(error) };
  }
}

export function checkHello(hello: Hello): void {
  checkId('hello.device_id', hello.deviceId);
  checkId('hello.install_id', hello.installId);
  checkId('hello.boot_id', hello.bootId);
  if (hello.protocolVersion < MIN_PROTOCOL_VERSION || hello.protocolVersion > PROTOCOL_VERSION) {
    const expected = `a protocol version from ${MIN_PROTOCOL_VERSION} to ${PROTOCOL_VERSION}; upgrade the ${hello.protocolVersion > PROTOCOL_VERSION ? 'coordinator' : 'agent'}`;
    throw new InvalidRequestError('hello.protocol_version', hello.protocolVersion, expected);
  }
  if (hello.info) checkInfo(hello.info);
  if (hello.reported) checkReported(hello.reported);
}

export function checkInfo(info: DeviceInfo): void {
  checkReportedLabels('info.labels', info.labels);
  for (const field of ['agentVersion', 'arch', 'os', 'hostname', 'httpUrl'] as const) checkText(`info.${field}`, info[field]);
  const { model, limits } = info;
  if (model) {
    if (model.hash !== '' && !/^[0-9a-f]{8,128}$/.test(model.hash)) throw new InvalidRequestError('info.model.hash', model.hash, 'a digest in lower-case hex');
    for (const field of ['name', 'architecture', 'message'] as const) checkText(`info.model.${field}`, model[field]);
    checkLength('info.model.moe_layers', model.moeLayers.length, MOST_LAYERS);
    checkLength('info.model.expert_bytes', model.expertBytes.length, MOST_LAYERS);
  }
  if (limits) {
    checkShare('info.limits.max_lambda', limits.maxLambda);
    checkLength('info.limits.max_capacities', limits.maxCapacities.length, MOST_LAYERS);
  }
}

export function checkReported(reported: Reported): void {
  if (!(reported.state in SpecState) || reported.state === SpecState.UNRECOGNIZED) throw new InvalidRequestError('reported.state', reported.state, 'a state of this protocol version');
  for (const field of ['generation', 'appliedGeneration'] as const) {
    if (reported[field] > MAX_GENERATION) throw new InvalidRequestError(`reported.${field}`, reported[field], `a generation up to ${MAX_GENERATION}`);
  }
  if (![0, 32].includes(reported.appliedHash.length)) throw new InvalidRequestError('reported.applied_hash', `${reported.appliedHash.length} bytes`, 'empty or a SHA-256 of 32 bytes');
  checkText('reported.reason', reported.reason);
  checkLength('reported.adjustments', reported.adjustments.length, MOST_ADJUSTMENTS);
  if (!reported.effective) return;
  checkShare('reported.effective.lambda', reported.effective.lambda);
  checkShare('reported.effective.trace_ratio', reported.effective.traceRatio);
  for (const field of ['capacities', 'lambdas', 'topJs'] as const) checkLength(`reported.effective.${field}`, reported.effective[field].length, MOST_LAYERS);
  for (const lambda of reported.effective.lambdas) checkShare('reported.effective.lambdas', lambda);
}

export function checkTelemetry(frame: TelemetryFrame): void {
  checkLength('telemetry.layers', frame.layers.length, MOST_LAYERS);
  checkLength('telemetry.read_micros_log2', frame.readMicrosLog2.length, 64);
  for (const layer of frame.layers) {
    for (const field of ['massLost', 'rangeMean'] as const) {
      if (!Number.isFinite(layer[field])) throw new InvalidRequestError(`telemetry.layers[${layer.layer}].${field}`, layer[field], 'a finite number');
    }
  }
  checkLength('telemetry.last_trace.trace_ids', frame.lastTrace?.traceIds.length ?? 0, 4096);
}

/** What it says is checked where it is counted; here only that it is no burden. */
export function checkExpertUse(use: ExpertUse): void {
  checkLength('expert_use.layers', use.layers.length, MOST_LAYERS);
  for (const [layer, { wanted, chosen }] of use.layers.entries()) checkLength(`expert_use.layers[${layer}]`, Math.max(wanted.length, chosen.length), MOST_EXPERTS);
  if (use.sequence > MAX_GENERATION) throw new InvalidRequestError('expert_use.sequence', use.sequence, `a number up to ${MAX_GENERATION}`);
}

/** Networks that are none are of no use and no harm. */
export function checkHolding({ manifestSha256, port, networks }: ModelHolding): void {
  checkSha256('model_holding.manifest_sha256', manifestSha256);
  if (port > 65_535) throw new InvalidRequestError('model_holding.port', port, 'a port, or 0');
  checkLength('model_holding.networks', networks.length, MOST_NETWORKS);
  for (const network of networks) if (network.length > MOST_NETWORK_TEXT) throw new InvalidRequestError('model_holding.networks', `${network.length} characters`, `at most ${MOST_NETWORK_TEXT}`);
}

export function checkWindow(window: RouterWindow): void {
  checkShare('router_window.lambda', window.lambda);
  checkText('router_window.window_id', window.windowId);
  checkLength('router_window.entropy_bits', window.entropyBits.length, MOST_LAYERS);
  if (window.data.length === 0) throw new InvalidRequestError('router_window.data', 'nothing', 'logits');
}

function checkShare(field: string, value: number): void {
  if (!(value >= 0 && value <= 1)) throw new InvalidRequestError(field, value, 'a number from 0 to 1');
}

function checkText(field: string, value: string): void {
  if (value.length > MOST_TEXT) throw new InvalidRequestError(field, `${value.length} characters`, `at most ${MOST_TEXT}`);
}

function checkLength(field: string, length: number, most: number): void {
  if (length > most) throw new InvalidRequestError(field, `${length} entries`, `at most ${most}`);
}
