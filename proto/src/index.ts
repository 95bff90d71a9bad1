/** Every message and service of moefleet.v1, and where their descriptors lie (for gRPC reflection). */
import { join } from 'node:path';

export * from './gen/moefleet/v1/access';
export * from './gen/moefleet/v1/agent';
export * from './gen/moefleet/v1/artifact';
export * from './gen/moefleet/v1/device';
export * from './gen/moefleet/v1/fleet';
export * from './gen/moefleet/v1/identity';
export * from './gen/moefleet/v1/inventory';
export * from './gen/moefleet/v1/knowledge';
export * from './gen/moefleet/v1/learner';
export * from './gen/moefleet/v1/model';
export * from './gen/moefleet/v1/operator';
export * from './gen/moefleet/v1/rollout';
export * from './gen/moefleet/v1/telemetry';
export * from './gen/moefleet/v1/warm';
export * from './gen/moefleet/v1/window';

export { bearerInterceptor } from './bearer';
export { ONE_DIAL } from './one-dial';
export { ROUTING_METHODS, type RoutingChosen, routingMethod, type RoutingMethod, ROUTINGS, routingText } from './routing-methods';

/** This release's; a coordinator accepts agents down to MIN_PROTOCOL_VERSION. */
export const PROTOCOL_VERSION = 1;
export const MIN_PROTOCOL_VERSION = 1;

/** A serialised FileDescriptorSet of all of the above. */
export const DESCRIPTOR_SET_PATH = join(__dirname, '..', 'moefleet.binpb');
/** Folder that holds `moefleet/v1/*.proto`. */
export const PROTO_ROOT = join(__dirname, '..');
